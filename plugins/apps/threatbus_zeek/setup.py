from setuptools import setup

setup(
    name="threatbus-zeek",
    version="2026.11.24",
    description="The Zeek app plugin of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_zeek"],
    package_data={"threatbus_zeek": ["py.typed"]},
    # Broker's Python module is in no registry: it comes with Zeek, or with the operating system.
    install_requires=["threatbus>=2026.11.24", "websockets>=15"],
    entry_points={"threatbus.app": ["zeek = threatbus_zeek.plugin:ZeekPlugin"]},
)
