"""Classes of training frameworks that call the model themselves, so that it gets the mixed target; a file each."""
