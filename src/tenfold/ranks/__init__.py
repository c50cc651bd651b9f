"""Rules for how much rank where: pure functions of arrays, no model, no tensor of one."""
