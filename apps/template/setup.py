from setuptools import setup

setup(
    name="threatbus-app-template",
    version="2026.11.24",
    description="A complete minimal app of Threat Bus, to be copied",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=["threatbus_app_template"],
    package_data={"threatbus_app_template": ["py.typed"]},
    install_requires=["threatbus>=2026.11.24"],
    entry_points={"console_scripts": ["template-threatbus = threatbus_app_template.command:main"]},
)
