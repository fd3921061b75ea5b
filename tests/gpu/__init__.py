"""What only a GPU can show: kernels against float32, training in 16 bits, and what fits. ``make gpu-day`` runs it."""
