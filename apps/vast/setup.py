from pathlib import Path

from setuptools import setup

setup(
    name="vast-threatbus",
    version="2026.11.24",
    description="Connects Tenzir, formerly VAST, to Threat Bus",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["vast_threatbus"],
    package_data={"vast_threatbus": ["py.typed"]},
    install_requires=["msgspec>=0.20", "threatbus>=2026.11.24"],
    entry_points={"console_scripts": ["vast-threatbus = vast_threatbus.command:main"]},
)
