def write_network(trainer, path, state, *, step, epoch, finished_at):
    from library.tensorfile import write_tensors
    write_tensors(path, state)
