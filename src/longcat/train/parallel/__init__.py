"""One run over several processes: layouts, torchrun, sharded snapshots, dead processes."""
