"""Marks of tests about what Lightning itself does in newer versions only."""

import lightning
import pytest
from packaging.version import Version


def since(version, why):
    """Skips a test with an older Lightning, and says what that one does."""
    return pytest.mark.skipif(Version(lightning.__version__) < Version(version), reason=f"Lightning < {version}: {why}")
