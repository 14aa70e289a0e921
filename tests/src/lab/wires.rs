//! Bridges, pairs of virtual interfaces and addresses of a lab.

use anyhow::Result;

use super::{Lab, Links, Netns, PRIVATE_V6, PUBLIC_V6, Settings};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Name of the switch's port that node `pnn`'s interface `name` is plugged into.
pub(super) fn port(pnn: u32, name: &str) -> String {
    format!("v{pnn}-{name}")
}

/// Node number and interface behind a port of the switch.
pub(super) fn behind(port: &str) -> Option<(u32, &str)> {
    let (pnn, name) = port.strip_prefix('v')?.split_once('-')?;
    Some((pnn.parse().ok()?, name))
}

pub(super) fn private_v4(pnn: u32) -> String {
    format!("10.99.1.{}", pnn + 1)
}

/// On the public network.
pub(super) fn own_v4(pnn: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 2, 10)) + pnn)
}

pub(super) fn private_v6(pnn: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(PRIVATE_V6) + u128::from(pnn) + 1)
}

pub(super) fn build_switch(lab: &Lab) -> Result<()> {
    let (switch, client) = (&lab.switch, &lab.client);
    switch.create()?;
    // The switch itself takes no part in what it carries.
    switch.sysctl(&[
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
    ])?;
    let bridge = |name: &str| {
        format!("link add {name} up type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
    };
    switch.ip_batch(&[bridge("br-priv"), bridge("br-pub")])?;
    switch.nft(
        "table bridge lab {\n chain forward {\n type filter hook forward priority 0; policy accept;\n }\n}",
    )?;

    client.create()?;
    prepare(client, &lab.settings)?;
    client.sysctl(&[("net/ipv4/ip_local_port_range", "10000 65000")])?;
    switch.ip_batch(&[
        format!(
            "link add client type veth peer name eth0 netns {}",
            client.name()
        ),
        "link set client master br-pub up".into(),
    ])?;
    let mut lines = vec![
        "link set lo up".into(),
        "addr add 10.99.2.5/24 dev eth0".into(),
    ];
    if lab.settings.many() {
        lines.push("addr add 10.98.255.5/16 dev eth0".into());
    }
    if lab.settings.ipv6 {
        let v6 = Ipv6Addr::from(u128::from(PUBLIC_V6) + 5);
        lines.push(format!("addr add {v6}/64 dev eth0 nodad"));
    }
    lines.push("link set eth0 up".into());
    client.ip_batch(&lines)
}

fn prepare(space: &Netns, settings: &Settings) -> Result<()> {
    if !settings.ipv6 {
        space.sysctl(&[
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ])?;
    }
    Ok(())
}

/// Makes a node's namespace and plugs it in.
pub(super) fn build_node(
    pnn: u32,
    space: &Netns,
    switch: &Netns,
    settings: &Settings,
) -> Result<()> {
    space.create()?;
    prepare(space, settings)?;
    space.ip("link set lo up")?;
    plug(pnn, space, switch, settings, "priv0")?;
    settings
        .public_interface_names()
        .iter()
        .try_for_each(|name| plug(pnn, space, switch, settings, name))
}

/// Makes one interface of a node, with its static addresses, and connects it.
pub(super) fn plug(
    pnn: u32,
    space: &Netns,
    switch: &Netns,
    settings: &Settings,
    name: &str,
) -> Result<()> {
    let port = port(pnn, name);
    let (bridge, index) = match name.strip_prefix("pub") {
        None => ("br-priv", 0),
        Some(n) => ("br-pub", 1 + n.parse::<u32>()?),
    };
    switch.ip_batch(&[
        format!(
            "link add {port} type veth peer name {name} address 02:99:00:00:{index:02x}:{pnn:02x} \
             netns {}",
            space.name()
        ),
        format!("link set {port} master {bridge} up"),
    ])?;
    let public_v6 = Ipv6Addr::from(u128::from(PUBLIC_V6) + 0x10 + u128::from(pnn));
    let (v4, v6) = match index {
        0 => (Some(private_v4(pnn)), Some(private_v6(pnn))),
        1 => (Some(own_v4(pnn).to_string()), Some(public_v6)),
        _ => (None, None),
    };
    let mut lines: Vec<_> = v4
        .iter()
        .map(|a| format!("addr add {a}/24 dev {name}"))
        .collect();
    if settings.ipv6 {
        lines.extend(
            v6.iter()
                .map(|a| format!("addr add {a}/64 dev {name} nodad")),
        );
    }
    lines.push(format!("link set {name} up"));
    space.ip_batch(&lines)
}

/// Unplugs a node and removes its namespace, as a machine is that lost its power.
pub(super) fn remove_node(pnn: u32, space: &Netns, switch: &Netns, settings: &Settings) {
    // The ports first: a namespace's interfaces go some time after its name.
    for port in ports(pnn, Links::All, settings) {
        let _ = switch.ip(&format!("link del {port}"));
    }
    space.remove();
}

/// Ports of a node on the chosen networks.
pub(super) fn ports(pnn: u32, links: Links, settings: &Settings) -> Vec<String> {
    let mut names = Vec::new();
    if links != Links::Public {
        names.push(port(pnn, "priv0"));
    }
    if links != Links::Private {
        names.extend(
            settings
                .public_interface_names()
                .iter()
                .map(|n| port(pnn, n)),
        );
    }
    names
}

pub(super) fn set_ports(switch: &Netns, ports: &[String], up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    switch.ip_batch(
        &ports
            .iter()
            .map(|p| format!("link set {p} {state}"))
            .collect::<Vec<_>>(),
    )
}

pub(super) fn block(lab: &Lab, from: u32, to: u32, links: Links) -> Result<()> {
    let mut script = String::new();
    for a in ports(from, links, &lab.settings) {
        for b in ports(to, links, &lab.settings) {
            let _ = writeln!(
                script,
                "add rule bridge lab forward iifname \"{a}\" oifname \"{b}\" drop"
            );
        }
    }
    lab.switch.nft(&script)
}

pub(super) fn heal(lab: &Lab) -> Result<()> {
    lab.switch.nft("flush chain bridge lab forward")
}

#[cfg(test)]
mod tests {
    use super::{behind, port};

    #[test]
    fn ports_tell_their_node() {
        assert_eq!(behind(&port(63, "pub0")), Some((63, "pub0")));
        assert_eq!(behind("client"), None);
        assert_eq!(behind("br-pub"), None);
    }
}
