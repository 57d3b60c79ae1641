"""Targets are set for one device, and judged only there."""

TARGET_DEVICE = "NVIDIA H200"


def verdict(met: bool, device_name: str) -> str:
    """`met` or `NOT MET` on the device that the targets are set for, `not judged` on any other."""
    if not device_name.startswith(TARGET_DEVICE):
        return "not judged"
    return "met" if met else "NOT MET"
