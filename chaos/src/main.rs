//! Benchmarks and long runs against real nodes in a lab.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = skein_chaos::lab::main_if_inside() {
        return code;
    }
    ExitCode::SUCCESS
}
