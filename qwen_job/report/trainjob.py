"""Report a run's progress to Kubeflow's Trainer, which shows it in the TrainJob's status (gate TrainJobStatus).

The controller sets KUBEFLOW_TRAINER_SERVER_URL, _CA_CERT and _TOKEN (paths of files) in the pods, and takes what
transformers' KubeflowCallback sends: {"trainerStatus": {...}}. That callback sends it from within the training loop and
waits up to 5 seconds for a server that does not answer; here the process beside the training does.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qwen_job.report.exposition import Figures
from qwen_job.run.reading import number, whole

URL, CA_CERT, TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))
OFF = "DISABLE_KUBEFLOW_INTEGRATION"  # transformers' own switch
SEND_SECONDS = 2.0
_METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch")


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the controller asks for reports."""
    return bool(environment.get(URL)) and environment.get(OFF, "").upper() != "TRUE"


def trainer_status(figures: Figures, now: float) -> dict[str, Any]:
    """Return the status as the controller takes it; ``now`` in unix seconds."""
    beat = figures.heartbeat
    step, total = whole(figures.step.get("step")), whole(beat.get("total_steps"))
    done = beat.get("state") == "done"
    status: dict[str, Any] = {"lastUpdatedTime": datetime.fromtimestamp(now, timezone.utc).isoformat()}
    if done or (step is not None and total):
        # 100 only for a run whose model is written.
        status["progressPercentage"] = 100 if done else max(0, min(99, 100 * (step or 0) // (total or 1)))
    left = 0.0 if done else number(beat.get("eta_seconds"))
    if left is not None:
        status["estimatedRemainingSeconds"] = max(0, int(left))
    known: dict[str, float | None] = {
        name: value for name in _METRICS if (value := number(figures.step.get(name))) is not None
    }
    known |= {"current_step": step, "total_steps": total, "eval_loss": number(figures.eval.get("loss"))}
    metrics = [{"name": name, "value": str(value)} for name, value in known.items() if value is not None]
    return {**status, **({"metrics": metrics} if metrics else {})}


def send(figures: Figures, now: float, environment: Mapping[str, str] = os.environ) -> None:
    """Post the status once.

    Raises:
        OSError: it did not arrive, or was refused.
    """
    token = Path(environment.get(TOKEN, "")).read_text("utf-8").strip()
    request = urllib.request.Request(
        environment[URL],
        data=json.dumps({"trainerStatus": trainer_status(figures, now)}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        method="POST",
    )
    ca_cert = environment.get(CA_CERT)
    trusted = ssl.create_default_context(cafile=ca_cert) if ca_cert else None
    # A proxy for downloads does not reach the cluster's own servers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
    try:
        opener.open(request, timeout=SEND_SECONDS).close()
    except urllib.error.HTTPError as error:
        raise OSError(error.code, f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(0, str(error.reason)) from None
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(0, type(error).__name__) from None
