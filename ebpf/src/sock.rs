//! What the loader tells the programs that look at sockets: where the kernel keeps their fields,
//! and which network namespace is ours.

use aya::{Btf as AyaBtf, EbpfLoader};

use crate::{Error, btf::Btf, error::explain, sys};

/// Constants of a load, in the order of the kernel programs' `OFFSETS`.
pub(crate) struct Constants {
    offsets: [u32; 16],
    pub(crate) netns: u64,
}

impl Constants {
    /// Of this kernel and the calling thread's network namespace.
    pub(crate) fn find(btf: &Btf) -> Result<Self, String> {
        let common = |path: &str| {
            let path = format!("__sk_common.{path}");
            btf.offset("sock", &path)
                .ok_or_else(|| format!("its `struct sock` has no {path}"))
        };
        let other = |of: &str, path: &str| {
            btf.offset(of, path)
                .ok_or_else(|| format!("its `struct {of}` has no {path}"))
        };
        // Before 5.16 it stands in a union with something else.
        let cgroup = btf
            .offset("sock", "sk_cgrp_data.cgroup")
            .zip(btf.offset("cgroup", "kn"))
            .zip(btf.offset("kernfs_node", "id"));
        let ((cgroup, node), id) = cgroup.unwrap_or_default();
        let offsets = [
            common("skc_family")?,
            common("skc_state")?,
            common("skc_num")?,
            common("skc_dport")?,
            common("skc_bound_dev_if")?,
            common("skc_rcv_saddr")?,
            common("skc_daddr")?,
            common("skc_v6_rcv_saddr")?,
            common("skc_v6_daddr")?,
            common("skc_net.net")?,
            other("sock", "sk_protocol")?,
            other("inet_sock", "inet_sport")?,
            cgroup,
            other("net", "net_cookie")?,
            node,
            id,
        ];
        let netns = sys::netns_cookie()
            .map_err(|error| format!("asking for the network namespace's cookie: {error}"))?;
        Ok(Self { offsets, netns })
    }

    pub(crate) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.btf(None);
        loader.override_global("OFFSETS", &self.offsets[..], true);
        loader.override_global("NETNS", &self.netns, true);
    }
}

/// The kernel's types, for loading what is attached by type.
pub(crate) fn kernel_types() -> Result<AyaBtf, String> {
    AyaBtf::from_sys_fs().map_err(|error| format!("reading the kernel's types: {error}"))
}

/// One line of what failed.
pub(crate) fn lacking(what: &'static str, error: &Error) -> Error {
    match error {
        Error::Lacking { lacks, .. } => Error::Lacking {
            what,
            lacks: lacks.clone(),
        },
        error => Error::Lacking {
            what,
            lacks: explain(error),
        },
    }
}
