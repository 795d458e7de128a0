"""The web plugin: health, metrics, an API and a page, all on one HTTP endpoint.

It shows what `threatbus.observe` sees. The rooms: `plugin` (hooks), `server` (connections),
`handler` (HTTP), `site` (which path gives what), and what those give: `exposition` (metrics),
`history` (rates), `stream` (what passes), `publisher` (what is taken in), `rejected`, `tokens`.
"""
