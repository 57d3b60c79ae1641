"""Parts of several benchmarks: models, made-up data, clocks and rates of the device, attempts that may fail, text."""
