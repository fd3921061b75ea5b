"""The page of the site that shows the demo: its recording and its report, which scripts/site/media.py makes."""

RECORDING = "demo.svg"
CAST = "demo.cast"
PICTURES = ("report-light.png", "report-dark.png", "report-narrow.png")

PAGE = {
    "en": f"""\
# A look at it

## The demo in a terminal

`make demo` plans a job, trains a tiny chat model from random weights with two CPU processes, and talks to it. This is a
recording of it; it plays by itself. [{CAST}](media/{CAST}) is the same for `asciinema play`.

![The demo in a terminal: plan, training, an answer](media/{RECORDING})

## The report of a run

Every run folder has a `report.html`: loss, learning rate, throughput, planned and measured memory, and what happened.
It is one file that loads nothing else, in light and dark, on a wide or a narrow screen.

![The report in light](media/{PICTURES[0]})

![The report in dark](media/{PICTURES[1]})

![The report on a narrow screen](media/{PICTURES[2]}){{ width=380 }}
""",
    "zh": f"""\
# 看一看

## 终端里的演示

`make demo` 规划一个任务，用两个 CPU 进程从随机权重训练一个很小的对话模型，然后与它对话。下面是它的录像，会自动播放；
[{CAST}](media/{CAST}) 可用 `asciinema play` 播放。

![终端里的演示：规划、训练、回答](media/{RECORDING})

## 运行的报告

每个运行目录都有 `report.html`：损失、学习率、吞吐、规划与实测的显存，以及发生过的事件。它是单个文件，不加载其他内容，
支持浅色和深色、宽屏和窄屏。

![浅色报告](media/{PICTURES[0]})

![深色报告](media/{PICTURES[1]})

![窄屏报告](media/{PICTURES[2]}){{ width=380 }}
""",
}
