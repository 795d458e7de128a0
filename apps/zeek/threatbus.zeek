##! Connects Zeek to Threat Bus: indicators come into the Intel framework, hits go back as
##! sightings. For Zeek 4 to 9, single or clustered; in a cluster the manager alone talks.
##!
##! Native Broker (Zeek connects to the bus):
##!
##!     zeek -i eth0 threatbus.zeek Tenzir::broker_host=192.0.2.1 "Tenzir::snapshot_intel=30 days"
##!
##! WebSocket (the bus connects to Zeek; the way for clusters whose backend is not Broker, as is the
##! default of zeekctl from Zeek 8.1 on):
##!
##!     redef Tenzir::transport = Tenzir::WEBSOCKET;
##!
##! docs/protocol-zeek.md in the repository of Threat Bus describes the events. The namespace is
##! this file's module: who wants another one changes the line below, and module_namespace in the
##! configuration of the bus.

@load base/frameworks/cluster
@load base/frameworks/intel
@load base/frameworks/logging
@load frameworks/intel/seen

module Tenzir;

export {
	type Transport: enum {
		## Zeek connects to broker_host and broker_port, where the bus listens.
		BROKER,
		## The bus connects to Zeek's WebSocket API (plugins.apps.zeek.websockets there).
		WEBSOCKET,
	};

	## How this Zeek and the bus talk.
@ifdef ( Broker::peer )
	const transport: Transport = BROKER &redef;
@else
	const transport: Transport = WEBSOCKET &redef;
@endif

	## Where the bus listens for Broker.
	option broker_host: string = "127.0.0.1" &redef;
	option broker_port: port = 47761/tcp &redef;

	## Whether hits are reported to the bus.
	option report_sightings: bool = T &redef;

	## Whether what the bus adds and removes is written to threatbus.log.
	option log_operations: bool = T &redef;

	## How far back the bus is asked for indicators when Zeek starts; 0 sec: not at all.
	option snapshot_intel: interval = 0 sec &redef;

	## The topic of the bus whose indicators are wanted, and the one that sightings go to.
	option intel_topic: string = "stix2/indicator" &redef;
	option sighting_topic: string = "stix2/sighting" &redef;

	## The topic for all else between Zeek and the bus.
	option management_topic: string = "threatbus/manage" &redef;

	## So many hits of one indicator within noisy_intel_interval are reported, the last of them
	## as noisy; further ones are not, until the interval is over. 0: all are reported.
	option noisy_intel_threshold: count = 100 &redef;
	const noisy_intel_interval: interval = 10 min &redef;

	## What the sources of our intelligence begin with in intel.log; the id of the indicator
	## follows, so each has an entry of its own, and the operator's intelligence stays the
	## operator's.
	const intel_source: string = "threatbus" &redef;

	## What the bus calls this Zeek in its log.
	option instance_name: string = "zeek" &redef;

	## How often the bus gets a sign of life.
	const heartbeat_interval: interval = 5 sec &redef;

	## One value to look for; intel_type is a member of Intel::Type without its module.
	type Item: record {
		intel_type: string;
		indicator: string;
	};

	type Items: vector of Item;

	## One state of an indicator: these items are its, and no others. Without items it is gone.
	type Indicator: record {
		ts: time;
		id: string;
		items: Items;
		source: string;
		desc: string;
		confidence: count &optional;
	};

	type Indicators: vector of Indicator;

	## Zeek asks for what matches topic, to be sent to p2p_topic, which it has made up.
	global join: event(p2p_topic: string, topic: string, snapshot: interval, name: string);

	## The bus has heard: it sends from the moment that Zeek answers with "received".
	global joined: event(p2p_topic: string);

	## The bus does not know, or no longer know, of a subscription with this topic.
	global not_joined: event(p2p_topic: string);

	## The bus sends the batch with this number; a subscription's numbers begin at 1.
	global intel_batch: event(p2p_topic: string, number: count, indicators: Indicators);

	## Zeek is there, and has dealt with all batches up to this number.
	global received: event(p2p_topic: string, number: count);

	## Zeek needs nothing any more.
	global unsubscribe: event(p2p_topic: string);

	## Zeek has seen an indicator.
	global sighting: event(ts: time, intel_id: string, context: table[string] of any);

	## What is written to threatbus.log.
	redef enum Log::ID += { LOG };

	type Info: record {
		ts: time &log;
		operation: string &log;
		id: string &log;
		intel_type: string &log;
		indicator: string &log;
	};
}

redef record Intel::MetaData += {
	## The STIX id of the indicator that an item stands for; only our items have one.
	tb_id: string &optional;
	## Who made the indicator, as far as the bus knows.
	tb_source: string &optional;
	## How sure they are: 0 to 100.
	tb_confidence: count &optional;
};

# The topic of the present subscription, whether the bus knows of it, and the last batch of it.
global own_topic: string = "";
global is_joined: bool = F;
global last_batch: count = 0;

# The items of each indicator that are in the Intel framework.
global known: table[string] of Items = table();

# Hits of each indicator in the present interval.
global hits: table[string] of count &default=0 &create_expire=noisy_intel_interval;

global intel_types: table[string] of Intel::Type = {
	["ADDR"] = Intel::ADDR,
	["CERT_HASH"] = Intel::CERT_HASH,
	["DOMAIN"] = Intel::DOMAIN,
	["EMAIL"] = Intel::EMAIL,
	["FILE_HASH"] = Intel::FILE_HASH,
	["FILE_NAME"] = Intel::FILE_NAME,
	["SOFTWARE"] = Intel::SOFTWARE,
	["SUBNET"] = Intel::SUBNET,
	["URL"] = Intel::URL,
	["USER_NAME"] = Intel::USER_NAME,
};

function talks_to_bus(): bool
	{
	return ! Cluster::is_enabled() || Cluster::local_node_type() == Cluster::MANAGER;
	}

# Whether events go through Zeek's cluster backend, whatever that is, and not through Broker.
function uses_cluster(): bool
	{
@ifdef ( Cluster::publish )
	return transport == WEBSOCKET;
@else
	return F;
@endif
	}

function listen_to(topic: string)
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::subscribe )
		Cluster::subscribe(topic);
@endif
		return;
		}
@ifdef ( Broker::subscribe )
	Broker::subscribe(topic);
@endif
	}

function stop_listening_to(topic: string)
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::unsubscribe )
		Cluster::unsubscribe(topic);
@endif
		return;
		}
@ifdef ( Broker::unsubscribe )
	Broker::unsubscribe(topic);
@endif
	}

function send_join()
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::publish )
		Cluster::publish(management_topic, join, own_topic, intel_topic, snapshot_intel, instance_name);
@endif
		return;
		}
@ifdef ( Broker::publish )
	Broker::publish(management_topic, join, own_topic, intel_topic, snapshot_intel, instance_name);
@endif
	}

function send_received()
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::publish )
		Cluster::publish(management_topic, received, own_topic, last_batch);
@endif
		return;
		}
@ifdef ( Broker::publish )
	Broker::publish(management_topic, received, own_topic, last_batch);
@endif
	}

function send_unsubscribe()
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::publish )
		Cluster::publish(management_topic, unsubscribe, own_topic);
@endif
		return;
		}
@ifdef ( Broker::publish )
	Broker::publish(management_topic, unsubscribe, own_topic);
@endif
	}

function send_sighting(id: string, context: table[string] of any)
	{
	if ( uses_cluster() )
		{
@ifdef ( Cluster::publish )
		Cluster::publish(sighting_topic, sighting, network_time(), id, context);
@endif
		return;
		}
@ifdef ( Broker::publish )
	Broker::publish(sighting_topic, sighting, network_time(), id, context);
@endif
	}

# Says where this Zeek stands: it is there, or it wants to be.
function report()
	{
	if ( is_joined )
		send_received();
	else
		send_join();
	}

# The topic is ours alone: no other Zeek can take what is meant for this one. It is listened to
# before the bus hears of it, so nothing is sent that nobody receives.
function begin_subscription()
	{
	own_topic = cat(intel_topic, unique_id(""), unique_id(""));
	is_joined = F;
	last_batch = 0;
	listen_to(own_topic);
	}

function log_operation(operation: string, id: string, item: Item)
	{
	if ( log_operations )
		Log::write(LOG, Info($ts=network_time(), $operation=operation, $id=id,
		                     $intel_type=item$intel_type, $indicator=item$indicator));
	}

function intel_item(id: string, item: Item): Intel::Item
	{
	local meta = Intel::MetaData($source=cat(intel_source, " ", id), $tb_id=id);
	return Intel::Item($indicator=item$indicator,
	                   $indicator_type=intel_types[item$intel_type], $meta=meta);
	}

function insert_item(indicator: Indicator, item: Item)
	{
	local entry = intel_item(indicator$id, item);
	entry$meta$desc = indicator$id;
	if ( indicator$desc != "" )
		entry$meta$desc = cat(indicator$desc, " (", indicator$id, ")");
	entry$meta$tb_source = indicator$source;
	if ( indicator?$confidence )
		entry$meta$tb_confidence = indicator$confidence;
	Intel::insert(entry);
	log_operation("ADD", indicator$id, item);
	}

# Takes away our entry for this indicator. The value stays if another indicator has it, or the
# operator.
function remove_item(id: string, item: Item)
	{
	Intel::remove(intel_item(id, item), F);
	log_operation("REMOVE", id, item);
	}

function update(indicator: Indicator)
	{
	local wanted: set[string, string] = set();
	local usable: Items = vector();
	for ( i in indicator$items )
		{
		local item = indicator$items[i];
		if ( item$intel_type !in intel_types )
			next;
		add wanted[item$intel_type, item$indicator];
		usable += item;
		}
	if ( indicator$id in known )
		{
		for ( j in known[indicator$id] )
			{
			local old = known[indicator$id][j];
			if ( [old$intel_type, old$indicator] !in wanted )
				remove_item(indicator$id, old);
			}
		delete known[indicator$id];
		}
	for ( k in usable )
		insert_item(indicator, usable[k]);
	if ( |usable| > 0 )
		known[indicator$id] = usable;
	}

# A global event, as one without a prototype is: before Zeek 5.1, schedule takes an unqualified name
# for a global one, and who edits the module line need not qualify this one anew.
event threatbus_heartbeat()
	{
	report();
	schedule heartbeat_interval { threatbus_heartbeat() };
	}

event zeek_init()
	{
	# On every node: a logger writes only streams that it knows itself.
	Log::create_stream(LOG, [$columns=Info, $path="threatbus"]);
	if ( ! talks_to_bus() )
		return;
	begin_subscription();
	if ( transport == BROKER )
		{
@ifdef ( Broker::peer )
		Broker::peer(broker_host, broker_port, 1 sec);
@else
		Reporter::error("Tenzir::transport is BROKER, but this Zeek has no Broker: use WEBSOCKET");
@endif
		}
	schedule heartbeat_interval { threatbus_heartbeat() };
	}

event zeek_done()
	{
	if ( talks_to_bus() && is_joined )
		send_unsubscribe();
	}

# As soon as somebody is there, who may be the bus, and not only at the next heartbeat. Broker's own
# WebSocket server (Zeek 5 to 7) has its clients for peers, too.
@ifdef ( Broker::peer_added )
event Broker::peer_added(endpoint: Broker::EndpointInfo, msg: string)
	{
	if ( talks_to_bus() )
		report();
	}
@endif

@ifdef ( Cluster::websocket_client_added )
event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo, subscriptions: string_vec)
	{
	if ( talks_to_bus() && transport == WEBSOCKET )
		report();
	}
@endif

event joined(p2p_topic: string)
	{
	if ( p2p_topic != own_topic )
		return;
	is_joined = T;
	report();
	}

event not_joined(p2p_topic: string)
	{
	if ( p2p_topic != own_topic )
		return;
	stop_listening_to(own_topic);
	begin_subscription();
	report();
	}

event intel_batch(p2p_topic: string, number: count, indicators: Indicators)
	{
	if ( p2p_topic != own_topic )
		return;
	# One that has come before is dropped, and one that does not follow will come again.
	if ( number == last_batch + 1 )
		{
		last_batch = number;
		for ( i in indicators )
			update(indicators[i]);
		}
	report();
	}

event Intel::match(s: Intel::Seen, items: set[Intel::Item])
	{
	if ( ! report_sightings || ! talks_to_bus() )
		return;
	for ( item in items )
		{
		if ( ! item$meta?$tb_id )
			next;
		local id = item$meta$tb_id;
		++hits[id];
		if ( noisy_intel_threshold > 0 && hits[id] > noisy_intel_threshold )
			next;
		local context: table[string] of any = table();
		context["noisy"] = noisy_intel_threshold > 0 && hits[id] == noisy_intel_threshold;
		context["indicator"] = item$indicator;
		context["where"] = cat(s$where);
		if ( s?$node )
			context["node"] = s$node;
		if ( s?$uid )
			context["uid"] = s$uid;
		if ( s?$conn )
			{
			context["source"] = cat(s$conn$id$orig_h);
			context["destination"] = cat(s$conn$id$resp_h);
			}
		send_sighting(id, context);
		}
	}
