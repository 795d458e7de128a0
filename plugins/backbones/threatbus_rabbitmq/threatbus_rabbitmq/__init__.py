"""The RabbitMQ backbone of Threat Bus: several machines, one bus."""
