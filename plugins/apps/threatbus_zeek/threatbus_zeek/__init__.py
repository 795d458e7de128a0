"""The Zeek app plugin of Threat Bus: indicators in, sightings out, by Broker and by WebSocket."""
