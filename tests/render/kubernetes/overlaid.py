"""Fields of a user's own: what is merged into ours, and what is refused; the chart's tests use the same list.

All fields are below ``kubernetes``.
"""

from __future__ import annotations

import yaml

# What is merged -> fields that add to lists that we fill ourselves; MAIN is the container that runs the job.
MERGED: dict[str, dict[str, object]] = yaml.safe_load("""
a variable:
  pod_container: {env: [{name: A, value: b}, {name: NCCL_DEBUG, value: INFO}]}
a variable from a secret:
  env_from_secrets: [one]
  pod_container: {env: [{name: NCCL_DEBUG, valueFrom: {secretKeyRef: {name: a, key: b}}}]}
  pod: {containers: [{name: MAIN, envFrom: [{prefix: X_, secretRef: {name: two}}]}]}
a Secret, a ConfigMap and a CSI volume:
  pod:
    volumes:
      - {name: s, secret: {secretName: s}}
      - {name: c, configMap: {name: c}}
      - {name: v, csi: {driver: d, readOnly: true}}
      - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
  pod_container:
    volumeMounts:
      - {name: s, mountPath: /s, readOnly: true}
      - {name: c, mountPath: /c}
      - {name: v, mountPath: /v}
      - {name: tmp, mountPath: /tmp/, subPath: x}
an init container with its own volume:
  pod:
    volumes: [{name: scratch, emptyDir: {}}]
    initContainers:
      - {name: i, image: busybox, command: [sh, -c, ":"], volumeMounts: [{name: scratch, mountPath: /scratch}]}
a sidecar, ports and pull secrets:
  image_pull_secrets: [one]
  pod:
    imagePullSecrets: [{name: two}]
    containers: [{name: metrics, image: x, ports: [{containerPort: 9400}]}]
  pod_container:
    ports: [{name: tb, containerPort: 6006}, {name: udp, containerPort: 6006, protocol: UDP}]
tolerations and places:
  tolerations: [{key: spot, operator: Exists}]
  gpu_products: [A]
  spread: zone
  topology: rack
  pod:
    tolerations: [{key: spot, operator: Exists}, {key: team, operator: Exists}]
    topologySpreadConstraints: [{topologyKey: rack, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway}]
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms:
            - matchExpressions: [{key: pool, operator: Exists}]
            - matchFields: [{key: metadata.name, operator: In, values: [n]}]
capabilities:
  ipc_lock: true
  pod_container: {securityContext: {capabilities: {add: [NET_RAW]}}}
memory:
  pod_container: {resources: {limits: {memory: 900Gi}}}
""")
# Field that is named -> what is written, for pods of every kind of job.
REFUSED: dict[str, str] = {
    "pod_container.command": "pod_container: {command: [sleep]}",
    "pod_container.args": "pod_container: {args: [x]}",
    "pod_container.name": "pod_container: {name: other}",
    "pod_container.env[0]": "pod_container: {env: [{value: x}]}",
    "pod_container.env[1]": "pod_container: {env: [{name: A, value: x}, {name: A, value: y}]}",
    "pod_container.env": "pod_container: {env: {A: x}}",
    "pod_container.env[2]": "pod_container: {env: [{name: A}, {name: B}, {name: RANK, value: '0'}]}",
    "pod_container.env[3]": "pod_container: {env: [{name: A}, {name: B}, {name: C}, {name: QWEN_JOB_NODE_RANK}]}",
    "pod_container.env[0].value": "pod_container: {env: [{name: DB_PASSWORD, value: x}]}",
    "pod_container.volumeMounts[0]": "pod_container: {volumeMounts: [{name: tmp}]}",
    "pod_container.volumeMounts[1]": "pod_container: {volumeMounts: [{name: tmp, mountPath: /x}, "
    "{name: tmp, mountPath: /dev/shm}]}",
    "pod_container.volumeMounts[2]": "pod_container: {volumeMounts: [{name: tmp, mountPath: /x}, "
    "{name: tmp, mountPath: /y}, {name: tmp, mountPath: /etc/qwen-job/}]}",
    "pod_container.resources.limits.nvidia.com/gpu": "pod_container: {resources: {limits: {nvidia.com/gpu: '4'}}}",
    "pod_container.securityContext": "pod_container: {securityContext: [x]}",
    "pod.volumes[0]": "pod: {volumes: [{name: config, emptyDir: {}}]}",
    "pod.volumes[1]": "pod: {volumes: [{name: a, emptyDir: {}}, {name: shm, emptyDir: {}}]}",
    "pod.volumes[2]": "pod: {volumes: [{name: a, emptyDir: {}}, {name: b, emptyDir: {}}, {emptyDir: {}}]}",
    "pod.volumes[3]": "pod: {volumes: [{name: a, emptyDir: {}}, {name: b, emptyDir: {}}, {name: c, emptyDir: {}}, "
    "{name: shared, csi: {driver: d}}]}",
    "pod_container.resources": "pod_container: {resources: text}",
    "pod_container.resources.limits": "pod_container: {resources: {limits: [a]}}",
    "pod.volumes": "pod: {volumes: text}",
    "pod.terminationGracePeriodSeconds": "pod: {terminationGracePeriodSeconds: 5}",
    "pod.activeDeadlineSeconds": "pod: {activeDeadlineSeconds: 600}",
    "pod.$patch": "pod: {$patch: replace}",
    "pod.tolerations": "pod: {tolerations: {key: a}}",
    "pod.tolerations[1]": "pod: {tolerations: [{key: a, operator: Exists}, text]}",
    "pod.initContainers": "pod: {initContainers: 1.5}",
    "pod.initContainers[0].securityContext": "pod: {initContainers: [{name: a, image: b, securityContext: text}]}",
}
# Kind -> the same, of the job's own spec.
REFUSED_OF_JOBS: dict[str, dict[str, str]] = {
    "pytorchjob": {
        "job.nprocPerNode": "job: {nprocPerNode: '4'}",
        "job.pytorchReplicaSpecs": "job: {pytorchReplicaSpecs: [text]}",
        "job.pytorchReplicaSpecs.Boss": "job: {pytorchReplicaSpecs: {Boss: 5}}",
        "job.elasticPolicy.minReplicas": "job: {elasticPolicy: {minReplicas: 1}}",
        "job.pytorchReplicaSpecs.Worker.replicas": "job: {pytorchReplicaSpecs: {Worker: {replicas: 3}}}",
        "job.pytorchReplicaSpecs.Master": "job: {pytorchReplicaSpecs: {Master: {replicas: 1}}}",
        "job.runPolicy.activeDeadlineSeconds": "job: {runPolicy: {activeDeadlineSeconds: 60}}",
        "job.pytorchReplicaSpecs.Worker.template.spec.volumes[0]": "job: {pytorchReplicaSpecs: {Worker: {template: "
        "{spec: {volumes: [{name: shm}]}}}}}",
        "pod_container.ports[0]": "pod_container: {ports: [{name: x, containerPort: 29400}]}",
    },
    "trainjob": {
        "job.trainer.numNodes": "job: {trainer: {numNodes: 3}}",
        "job.trainer.command": "job: {trainer: {command: [x]}}",
        "job.trainer.resourcesPerNode": "job: {trainer: {resourcesPerNode: {limits: {cpu: '1'}}}}",
        "job.runtimeRef": "job: {runtimeRef: {name: other}}",
        "job.trainer.env[0]": "job: {trainer: {env: [{name: PET_NNODES, value: '1'}]}}",
    },
    "jobset": {
        "job.network.enableDNSHostnames": "job: {network: {enableDNSHostnames: false}}",
        "job.replicatedJobs[0]": "job: {replicatedJobs: [{replicas: 2}]}",
        "job.replicatedJobs[1].template.spec.parallelism": "job: {replicatedJobs: [{name: more}, "
        "{name: node, template: {spec: {parallelism: 3}}}]}",
    },
}


def named(kind: str, value: object) -> dict[str, object]:
    """Return the fields for a job of that kind, as plain values."""
    main = "pytorch" if kind == "pytorchjob" else "node"
    text = value if isinstance(value, str) else yaml.safe_dump(value)
    return {"kind": kind, **yaml.safe_load(text.replace("MAIN", main))}
