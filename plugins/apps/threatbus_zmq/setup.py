from setuptools import setup

setup(
    name="threatbus-zmq",
    version="2026.11.24",
    description="The ZeroMQ app plugin of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_zmq"],
    package_data={"threatbus_zmq": ["py.typed"]},
    install_requires=["threatbus>=2026.11.24", "pynacl>=1.5", "pyzmq>=26"],
    entry_points={"threatbus.app": ["zmq = threatbus_zmq.plugin:ZmqPlugin"]},
)
