from setuptools import setup

setup(
    name="threatbus-inmem",
    version="2026.11.24",
    description="The in-memory backbone of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_inmem"],
    package_data={"threatbus_inmem": ["py.typed"]},
    install_requires=["threatbus>=2026.11.24"],
    entry_points={"threatbus.backbone": ["inmem = threatbus_inmem.plugin:InMemoryBackbone"]},
)
