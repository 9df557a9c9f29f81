//! Serves the API over a map in memory, to try clients by hand: prints the kubeconfig's path, and runs
//! until it is interrupted. Nothing schedules or runs pods here.

#[path = "../tests/api/served.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod served;

use skein_apiserver::limits::Limits;
use skein_apiserver::testing::MemoryCluster;

#[tokio::main]
async fn main() {
    let served = served::Served::new(MemoryCluster::with_default_namespace(), Limits::default()).await;
    println!("{}", served.kubeconfig().display());
    tokio::signal::ctrl_c().await.expect("signals can be waited for");
}
