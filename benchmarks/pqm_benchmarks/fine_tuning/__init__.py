"""Fine-tuning with several losses on few trajectories: does the order of the losses stay?"""
