"""Dense weights that are projected onto low rank, or pulled toward it by a penalty, in the step of any optimizer."""
