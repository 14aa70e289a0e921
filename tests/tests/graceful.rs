//! Nodes that leave in order (`spec/cluster.md` 2.15): one by one under clients that keep
//! connecting, and the two time-outs of the configuration.

use std::time::{Duration, Instant};

use ctdb_tests::lab::{Lab, Service, lacks};

const LONG: Duration = Duration::from_secs(30);

fn needs() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
}

#[test]
fn nodes_that_stop_one_by_one_keep_clients_served() {
    needs();
    let lab = Lab::builder().nodes(3).build().unwrap();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let observer = lab.observe(None).unwrap();
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    ctdb_tests::lab::wait_until("all services to answer", LONG, || prober.all_good()).unwrap();
    let from = ctdb_tests::lab::Stamp::now();
    for node in lab.nodes() {
        assert!(node.stop_graceful(LONG).unwrap().success());
        // The others have everything at once: nothing had to time out.
        ctdb_tests::lab::wait_until("all services to answer", LONG, || prober.all_good()).unwrap();
        node.start_daemon().unwrap();
        lab.wait_all_healthy(LONG).unwrap();
        lab.wait_all_served(LONG).unwrap();
        ctdb_tests::lab::wait_until("all services to answer", LONG, || prober.all_good()).unwrap();
    }
    for record in prober.finish().unwrap() {
        let outage = record.longest_outage(from);
        println!("{}: longest outage {outage:?}", record.target.address);
        // ADDR-5: a move that is planned waits for no lease to end (1.8 s).
        assert!(
            outage < Duration::from_secs(1),
            "{}: {outage:?}",
            record.target.address
        );
        // ADDR-4.
        assert_eq!(record.refused(from), 0, "{}", record.target.address);
    }
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

#[test]
fn a_node_waits_for_others_to_take_over_and_then_as_long_as_it_is_told() {
    needs();
    let lab = Lab::builder()
        .nodes(3)
        .conf("failover", "shutdown failover timeout", "3")
        .conf("failover", "shutdown extra timeout", "2")
        .build()
        .unwrap();
    lab.bring_up(&[], LONG).unwrap();
    // Others take over: only the extra time is waited for.
    let asked = Instant::now();
    assert!(lab.node(0).stop_graceful(LONG).unwrap().success());
    let took = asked.elapsed();
    println!("with others: {took:?}");
    assert!(took >= Duration::from_secs(2), "{took:?}");
    // Nobody else may host: it waits for that as long as it may, then goes all the same.
    lab.node(1)
        .ctdb(&["node", "disable", "2"])
        .unwrap()
        .success()
        .unwrap();
    lab.wait("node 1 to have all", LONG, || {
        let owners = lab.node(1).ip_owners().unwrap();
        owners.values().all(|owner| *owner == Some(1))
    })
    .unwrap();
    let asked = Instant::now();
    assert!(lab.node(1).stop_graceful(LONG).unwrap().success());
    let took = asked.elapsed();
    println!("without others: {took:?}");
    assert!(took >= Duration::from_secs(3), "{took:?}");
    lab.destroy();
}
