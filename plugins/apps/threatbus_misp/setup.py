from setuptools import find_packages, setup

setup(
    name="threatbus-misp",
    version="2026.11.24",
    description="The MISP app plugin of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["threatbus_misp", "threatbus_misp.*"]),
    package_data={"threatbus_misp": ["py.typed"]},
    install_requires=["threatbus>=2026.11.24", "pymisp>=2.5,<3"],
    extras_require={"zmq": ["pyzmq>=26"], "kafka": ["confluent-kafka>=2.5"]},
    entry_points={"threatbus.app": ["misp = threatbus_misp.plugin:MispPlugin"]},
)
