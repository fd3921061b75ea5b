"""What runs inside the image: train.yaml to checkpoints, metrics and a model folder that answers."""
