"""KVM: the run loop, the exit handlers and the virtual PMUs."""
