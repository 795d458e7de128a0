"""The ZeroMQ app plugin of Threat Bus: the endpoint that apps and wrappers subscribe at."""
