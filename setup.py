from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="threatbus",
    version="2026.11.24",
    description="A pub/sub bus that connects security tools by STIX-2 messages",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["threatbus", "threatbus.*"]),
    package_data={"threatbus": ["py.typed"]},
    install_requires=[
        "dynaconf>=3.3,<4",
        "msgspec>=0.20",
        "pluggy>=1.5",
        "pyyaml>=6",
        "pyzmq>=26",
        # The border's verdict is that of this library, so its version is part of the contract.
        "stix2==3.0.2",
        "stix2-patterns==2.1.2",
    ],
    entry_points={"console_scripts": ["threatbus = threatbus.cli:main"]},
)
