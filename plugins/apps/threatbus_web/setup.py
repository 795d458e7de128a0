from setuptools import setup

setup(
    name="threatbus-web",
    version="2026.11.24",
    description="The status endpoint and the page of Threat Bus",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_web"],
    package_data={"threatbus_web": ["py.typed", "page/*"]},
    install_requires=["threatbus>=2026.11.24", "prometheus-client>=0.20"],
    entry_points={"threatbus.app": ["web = threatbus_web.plugin:WebPlugin"]},
)
