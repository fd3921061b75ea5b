"""The examples of configs/jobs as a table, and what each is planned to need: docs/examples.md, by scripts/docs.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from qwen_job.cli.init import examples
from qwen_job.job import load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.resources import resource
from qwen_job.text import GIB

PAGE = {
    "en": {
        "head": """\
# Examples

[English](examples.md) · [中文](examples.zh-CN.md)

Written by `python scripts/docs.py` from `configs/jobs/`.

Start from the example that is nearest to your model, GPUs and cluster, and change its paths:

```sh
qwen-job init --list
qwen-job init --from qwen2.5-7b-a100-1x8
qwen-job plan job.yaml
```

GPU memory is what the plan estimates for the fullest moment of one GPU, of what the GPU has. Tokens/s are estimated
for the whole job, with rows filled to `model_max_length`. Tests plan and render every example for its target; none of
these figures is measured. [plan.md](plan.md) says how they are made, [BENCHMARKS.md](../BENCHMARKS.md) what was
measured.
""",
        "columns": "| example | | model | GPUs | target | GPU memory (GiB) | tokens/s |",
        "of": "of",
    },
    "zh": {
        "head": """\
# 示例

[English](examples.md) · [中文](examples.zh-CN.md)

由 `python scripts/docs.py` 根据 `configs/jobs/` 生成。

选择与你的模型、GPU 和集群最接近的示例，修改其中的路径：

```sh
qwen-job init --list
qwen-job init --from qwen2.5-7b-a100-1x8
qwen-job plan job.yaml
```

“显存”一列是规划估算的单块 GPU 显存峰值，以及该 GPU 的显存容量。tokens/s 是对整个任务的估算，假定每行都填满到
`model_max_length`。测试会规划每个示例，并按其目标平台渲染；表中数字均非实测。计算方法见
[plan.zh-CN.md](plan.zh-CN.md)，实测结果见 [BENCHMARKS.md](../BENCHMARKS.md)。
""",
        "columns": "| 示例 | | 模型 | GPU | 目标平台 | 显存（GiB） | tokens/s |",
        "of": "/",
    },
}
# The first comment of each file, in Chinese.
CHINESE = {
    "demo": "演示：用两个 CPU 进程从头训练一个 Qwen2 结构的极小对话模型，约一分钟。",
    "qwen-1_8b-chat-a100": "在单个节点的两块 A100-80G 上全参数微调 Qwen-1.8B-Chat。",
    "qwen-1_8b-chat-a100-40g-1x2": "在两块 A100-40G 上微调 Qwen-1.8B-Chat。",
    "qwen-1_8b-chat-v100": "在八块 V100-32G 上微调 Qwen-1.8B-Chat：规划选 fp16 和 sdpa，而非 bf16 和 FlashAttention。",
    "qwen-1_8b-chat-v100-1x1": "在一块 V100-32G 上微调 Qwen-1.8B-Chat：规划把优化器放在主机内存，使用 fp16。",
    "qwen-1_8b-chat-v100-2x4": "在以太网连接的两个节点、共八块 V100-32G 上微调 Qwen-1.8B-Chat，使用 apptainer。",
    "qwen-7b-chat-a100-2x8": "在两个节点、每节点八块 A100-80G 上微调 Qwen-7B-Chat，使用 pyxis 容器和 InfiniBand。",
    "qwen2.5-1.5b-sweep-a100-1x4": "参数扫描：用一个 Slurm 数组运行六次 Qwen2.5-1.5B-Instruct，留出集损失最低的最好。",
    "qwen2.5-72b-h100-4x8": "在四个节点、每节点八块 H100-80G 上微调 Qwen2.5-72B-Instruct，使用 InfiniBand。",
    "qwen2.5-72b-h100-8x8": "在八个节点、每节点八块 H100-80G 上微调 Qwen2.5-72B-Instruct，使用 InfiniBand。",
    "qwen2.5-7b-32k-h100-1x8": "在单个节点的八块 H100-80G 上，以每行 32,768 个 token 微调 Qwen2.5-7B-Instruct。",
    "qwen2.5-7b-a100-1x8": "在单个节点的八块 A100-80G 上微调 Qwen2.5-7B-Instruct，使用 pyxis 容器，留出部分行评估。",
    "qwen2.5-7b-kueue-h100-2x8": "在 Kubernetes 上微调 Qwen2.5-7B-Instruct："
    "Kueue 队列中含两个 Pod 的 JobSet，先在不占用 GPU 的情况下完成准备。",
    "qwen2.5-7b-ssh-a100-4x8": "不用调度器，通过 ssh 在四台主机上微调 Qwen2.5-7B-Instruct。",
    "qwen3-8b-tools-h100-1x8": "用含工具和思考的对话微调 Qwen3-8B：只训练助手的轮次，包括工具调用。",
}


class Example(NamedTuple):
    """An example job: its file, the target that its sections are for, and its plan."""

    name: str
    summary: str
    path: Path
    target: str
    plan: Plan


def gallery() -> list[Example]:
    """Load and plan every example; the target is the one whose section it has, local for CPUs and else slurm."""
    found = []
    for name, summary in examples().items():
        path = resource("configs", "jobs", f"{name}.yaml")
        plan = make_plan(load_job([path], environ={}))
        sections = path.read_text("utf-8").splitlines()
        section = next((word for word in ("kubernetes", "hostfile") if f"{word}:" in sections), None)
        found.append(Example(name, summary, path, section or ("local" if plan.gpu.is_cpu else "slurm"), plan))
    return found


def examples_page(chinese: bool = False) -> str:
    """Return the page with every example's model, GPUs, target, memory and speed."""
    words = PAGE["zh" if chinese else "en"]
    parts = [words["head"], words["columns"], "|---|---|---|---|---|--:|--:|"]
    for example in gallery():
        plan = example.plan
        cells = (
            f"[{example.name}](../configs/jobs/{example.name}.yaml)",
            CHINESE[example.name] if chinese else example.summary,
            plan.job.model.name.rpartition("/")[2],
            f"{plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}",
            example.target,
            *_figures(plan, words["of"]),
        )
        parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def _figures(plan: Plan, of: str) -> tuple[str, str]:
    """Return the GPU memory in GiB and the tokens/s of a plan; nothing for CPUs, whose figures are a machine's own."""
    if plan.gpu.is_cpu:
        return "", ""
    assert plan.run is not None and plan.run.speed is not None
    memory = plan.run.memory
    assert memory is not None and memory.capacity is not None
    return f"{memory.gpu_bytes / GIB:.1f} {of} {memory.capacity / GIB:.1f}", f"{plan.run.speed.tokens_per_second:,.0f}"
