"""The Linux file server: a Plan 9 device for one VM, in processes of its own."""
