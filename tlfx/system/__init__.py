"""Files and devices: what commands and examples read, write and run on."""
