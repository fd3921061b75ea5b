"""Answer requests with vLLM's own application for each of several folders, without an engine and in one process.

vLLM's Python runs this: ``python in_vllm.py WORK ANSWERS``. WORK is JSON: a list of {"flags": [...], "requests":
[{"path": ..., "body": {...}}, ...]}; ANSWERS gets a list of what each request was answered, per entry of WORK.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.render.app_state import init_render_app_state
from vllm.utils.argparse_utils import FlexibleArgumentParser


async def answers(flags: list[str], requests: list[dict[str, Any]]) -> list[Any]:
    """Return the answers of ``vllm launch render`` with ``flags``."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    validate_parsed_serve_args(args)
    engine = AsyncEngineArgs.from_cli_args(args)
    config = VllmConfig(
        model_config=engine.create_model_config(),
        structured_outputs_config=engine.create_structured_outputs_config(),
    )
    app = build_app(args, ("render",))
    await init_render_app_state(config, app.state, args)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm", timeout=120) as client:
        return [
            (await client.post(request["path"], json={"model": args.model, **request["body"]})).json()
            for request in requests
        ]


def main() -> None:
    work, target = map(Path, sys.argv[1:])
    entries = json.loads(work.read_text(encoding="utf-8"))
    found = [asyncio.run(answers(entry["flags"], entry["requests"])) for entry in entries]
    target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
