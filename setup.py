"""What the wheel holds; everything else about the package stands in pyproject.toml.

The top folder's script, app, recipes, embedded model and sample rollouts travel as `spo.bundled`,
side by side as they are here, so that what finds its files beside itself does so once installed.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithoutSetup(build_py):
    """All modules of the top folder but this one."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [row for row in found if row[:2] != ("spo.bundled", "setup")]


setup(
    packages=[*find_packages(include=["spo", "spo.*"]), "spo.bundled"],
    package_dir={"spo.bundled": "."},
    package_data={
        "spo.inspector": ["static/**"],
        "spo.bundled": ["recipes/**/*.yaml", "assets/**"],
    },
    include_package_data=False,
    cmdclass={"build_py": BuildWithoutSetup},
)
