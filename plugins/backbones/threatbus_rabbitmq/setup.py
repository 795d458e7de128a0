from setuptools import setup

setup(
    name="threatbus-rabbitmq",
    version="2026.11.24",
    description="The RabbitMQ backbone of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_rabbitmq"],
    package_data={"threatbus_rabbitmq": ["py.typed"]},
    install_requires=["threatbus>=2026.11.24", "pika>=1.3.2,<2"],
    entry_points={"threatbus.backbone": ["rabbitmq = threatbus_rabbitmq.plugin:RabbitMQBackbone"]},
)
