"""From pictures on a disk to batches on a device.

`sources` says what is there, `order` and `draws` what is asked for (law 1: a pure function of
seed, epoch and index), `decode` and `views` do the host's work, `augment` the device's.
"""
