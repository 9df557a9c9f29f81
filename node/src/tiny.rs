//! What runs in the built-in image: a web server that says who it is, and a few small deeds for tests
//! and demos. No threads but one per connection, no configuration, no files.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// A request's line and headers at most.
const HEAD_BYTES_MAX: u64 = 8 << 10;

const USAGE: &str = "\
usage: tiny [serve [PORT]]     answer HTTP with this container's name (default: port 8080)
       tiny sleep [SECONDS]    do nothing (default: for ever)
       tiny print TEXT [COUNT [MILLISECONDS]]   print numbered lines
       tiny exit CODE [SECONDS]                 end with CODE
       tiny fill MEBIBYTES     take memory and keep it
       tiny fetch HOST PORT    print what HTTP answers there, exit 0 if it does
       tiny write FILE TEXT    write a file, then do nothing
       tiny read FILE..        print files, waiting for each until it is there
       tiny env NAME..         print variables of the environment";

/// Runs the deeds if this process was started as `skein tiny ..`.
pub(crate) fn main_if_tiny() -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some("tiny") {
        return None;
    }
    let args: Vec<String> = args.collect();
    Some(run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn run(args: &[&str]) -> ExitCode {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    match args {
        [] => serve(8080),
        ["serve"] => serve(8080),
        ["serve", port] => serve(number(port) as u16),
        ["sleep"] => loop {
            std::thread::park();
        },
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs(number(seconds))),
        ["print", text, rest @ ..] => {
            print(text, rest.first().map_or(1, |n| number(n)), rest.get(1).map_or(0, |n| number(n)))
        }
        ["exit", code, rest @ ..] => {
            std::thread::sleep(Duration::from_secs(rest.first().map_or(0, |n| number(n))));
            return ExitCode::from(number(code) as u8);
        }
        ["fill", mebibytes] => fill(number(mebibytes) as usize),
        ["write", file, text] => return write_file(file, text),
        ["read", files @ ..] => {
            return files
                .iter()
                .map(|file| read_file(file))
                .find(|code| *code != ExitCode::SUCCESS)
                .unwrap_or(ExitCode::SUCCESS);
        }
        ["env", names @ ..] => {
            names.iter().for_each(|name| println!("{}", std::env::var(name).unwrap_or_default()))
        }
        ["fetch", host, port] => return fetch(host, number(port) as u16),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn serve(port: u16) {
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            std::process::exit(1);
        }
    };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    println!("{} listens on port {port}", name.trim());
    end_when_asked();
    for stream in listener.incoming().flatten() {
        let name = name.trim().to_owned();
        std::thread::spawn(move || answer(stream, &name));
    }
}

/// The first process of a container has no default for SIGTERM: who does not listen is waited for in vain.
/// Before there are other threads.
fn end_when_asked() {
    let asked = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if asked.thread_block().is_ok() {
        std::thread::spawn(move || asked.wait().map(|_| std::process::exit(0)));
    }
}

fn answer(stream: TcpStream, name: &str) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut head = BufReader::new(stream.try_clone().ok()?.take(HEAD_BYTES_MAX));
    let mut line = String::new();
    while head.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let body = format!("{name}\n");
    let mut stream = stream;
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).ok()
}

fn print(text: &str, count: u64, pause_ms: u64) {
    for number in 1..=count {
        println!("{text} {number}");
        let _ = std::io::stdout().flush();
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
}

fn fill(mebibytes: usize) {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        // Written, not only reserved: the kernel counts what is touched.
        taken.push(vec![1; 1 << 20]);
    }
    println!("took {} MiB", taken.len());
    loop {
        std::thread::park();
    }
}

/// Whoever waits for the file sees it whole.
fn write_file(file: &str, text: &str) -> ExitCode {
    let unfinished = format!("{file}.unfinished");
    match std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, file)) {
        Ok(()) => loop {
            std::thread::park();
        },
        Err(error) => failed(&format!("cannot write {file}: {error}")),
    }
}

fn read_file(file: &str) -> ExitCode {
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                println!("{text}");
                return ExitCode::SUCCESS;
            }
            // Whoever makes it may be later.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return failed(&format!("cannot read {file}: {error}")),
        }
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

fn fetch(host: &str, port: u16) -> ExitCode {
    let fetched = || {
        let mut stream = TcpStream::connect((host, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(1 << 20).read_to_string(&mut text)?;
        Ok::<String, std::io::Error>(text)
    };
    match fetched() {
        Ok(text) => {
            print!("{}", text.split_once("\r\n\r\n").map_or(text.as_str(), |(_, body)| body));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&format!("cannot fetch from {host}:{port}: {error}")),
    }
}
