"""Sweeps: many tasks, made from axes, each carried out in a run folder of its own.

`axes` reads what a user wrote, `grid` makes the table of recipes, `children` that of branches;
`sweep_folder` stores a table, whatever its tasks are, and says how far each of them is,
`sweep_cost` forecasts it, `carrying_out` has it done by a backend (`slots`, `ray_cluster`,
`slurm_jobs`), each of whose workers calls `single_run`.
"""
