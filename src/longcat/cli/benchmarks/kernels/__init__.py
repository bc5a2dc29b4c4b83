"""`longcat bench kernels` on a CPU: every op's plain torch formulation beside what is run here."""
