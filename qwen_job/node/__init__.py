"""What runs on each node before and around training. In reading order:

- ``launcher``: exit codes and restarts; ``relay``: signals; ``attempts``: those without progress
- ``generations``: the attempts of one node; ``coordinator``: what the nodes agree on; ``processes``: its workers
- ``checks``: what the launcher checks before torch; ``driver``, ``image``, ``versions``: what the node and image have
- ``quick_check``, ``preflight``: all checks of a node; ``gpus``: its GPUs, ECC and Xid errors
- ``network``: can the nodes reach each other, and how fast? ``ring``: over TCP; ``collective``: over NCCL or Gloo
- ``prepare_job``: fetch the model and prepare the data in a pod; ``release``: then start the training job
- ``suite_check``: check a benchmark suite before the training; ``start_evaluation``: start its Job after it
"""
