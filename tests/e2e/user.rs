//! Somebody with a kubectl and a kubeconfig, on a machine that reaches every node.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::house::{House, PATIENCE, Said, said, until};

/// A kubectl of this machine.
pub(crate) struct Program {
    /// Where it comes from: part of the tests' names.
    pub(crate) from: &'static str,
    pub(crate) path: PathBuf,
}

/// The machine's own kubectl, and Debian's (`tests/install` unpacks it): an old one.
pub(crate) fn kubectls() -> [Program; 2] {
    let path = std::env::var("PATH").unwrap_or_default();
    let own = path.split(':').map(|dir| Path::new(dir).join("kubectl")).find(|path| path.is_file());
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/kubectl");
    [
        Program { from: "own", path: own.unwrap_or_else(|| "kubectl".into()) },
        Program { from: "debian", path: unpacked },
    ]
}

/// See the module.
pub(crate) struct User<'a> {
    house: &'a House,
    program: PathBuf,
    context: String,
    namespace: String,
    home: tempfile::TempDir,
}

/// A kubectl that goes on running; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl<'a> User<'a> {
    /// A user of `program` who asks the machine `node` of a whole cluster.
    pub(crate) fn of(house: &'a House, program: &Path, node: &str, namespace: &str) -> User<'a> {
        Self::with(house, program, node, namespace, &house.skein_ok(node, &["kubeconfig"]))
    }

    /// The same, with the kubeconfig that they were given.
    pub(crate) fn with(
        house: &'a House,
        program: &Path,
        node: &str,
        namespace: &str,
        config: &str,
    ) -> User<'a> {
        let home = tempfile::tempdir_in(house.dir()).expect("a directory for the user");
        std::fs::write(home.path().join("kubeconfig"), config).expect("the kubeconfig is written");
        let parsed: Value = serde_norway::from_str(config).expect("the kubeconfig is YAML");
        let contexts = parsed["contexts"].as_array().cloned().unwrap_or_default();
        let named: Vec<&str> = contexts.iter().filter_map(|context| context["name"].as_str()).collect();
        // Of a single node there is one, called like the cluster.
        let is_its = |name: &&&str| named.len() == 1 || name.ends_with(&format!("-{node}"));
        let context = named.iter().find(is_its);
        let context = context.unwrap_or_else(|| panic!("no context for {node} in {config}")).to_string();
        User { house, program: program.to_owned(), context, namespace: namespace.to_owned(), home }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.house.lab().command("timeout");
        command
            // In the foreground: else it leaves the process group that `Running` kills.
            .args(["--foreground", "120"])
            .arg(&self.program)
            .args(words)
            .args(["--context", &self.context, "--namespace", &self.namespace])
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("kubeconfig"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn say(&self, words: &[&str]) -> Said {
        said(self.command(words).output())
    }

    /// What it prints, after it ended well.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let said = self.say(words);
        assert_eq!(said.code, 0, "kubectl {words:?}: {said:?}");
        said.out
    }

    /// What it complains of, after it ended badly.
    pub(crate) fn fail(&self, words: &[&str]) -> String {
        let said = self.say(words);
        assert_ne!(said.code, 0, "kubectl {words:?} should fail: {said:?}");
        said.err
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let text = self.run(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("kubectl {words:?}: {error}: {text}"))
    }

    pub(crate) fn start(&self, words: &[&str]) -> Running {
        let mut child = self
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("kubectl starts");
        let output = BufReader::new(child.stdout.take().expect("piped above"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Running { child, lines }
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        path.display().to_string()
    }
}

impl Running {
    /// The next line that contains `text`.
    pub(crate) fn line(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(error) => panic!("no line with {text:?}: {error}"),
            }
        }
    }
}

impl Running {
    /// Waits until it has ended, whatever it prints.
    pub(crate) fn end(mut self) {
        until("it ends", || self.child.try_wait().expect("it is ours")).expect("it ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
