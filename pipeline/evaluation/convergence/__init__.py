"""How fast Jacobi sweeps of a trained model converge, and ways to read prompts (`megaponder convergence`)."""
