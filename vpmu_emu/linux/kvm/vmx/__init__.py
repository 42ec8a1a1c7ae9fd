"""Intel's half of KVM: exits, intercepts, the VMCS in memory, branch records and PEBS of guests."""
