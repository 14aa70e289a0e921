//! How a command of the new form ends.

use serde_json::json;

/// Exit codes of the new commands (`spec/cli.md` 7.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 1: it failed.
    Failed,
    /// 2: there is no such node, address, interface.
    NotFound,
    /// 3: not possible in this state.
    NotNow,
    /// 4: the time is over.
    TimedOut,
    /// 64: wrong arguments.
    Usage,
    /// As an old command ends.
    Code(u8),
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NotFound => 2,
            Self::NotNow => 3,
            Self::TimedOut => 4,
            Self::Usage => 64,
            Self::Code(code) => code,
        }
    }

    /// The exit code that an HTTP status stands for.
    pub fn of_status(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            409 | 503 => Self::NotNow,
            408 | 504 => Self::TimedOut,
            _ => Self::Failed,
        }
    }
}

/// Why a command could not do what was asked (OPS-2).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// Stable word, that of the API where the error comes from there.
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
    /// It stands in the JSON already, at the end of a list that was begun.
    pub told: bool,
    /// The message is an old command's and stands alone, without the program's name.
    pub bare: bool,
}

impl Failure {
    /// A failure with its exit code, word and text.
    pub fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            message: message.into(),
            told: false,
            bare: false,
        }
    }

    /// With a message that stands alone.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// The object that `--json` prints on standard output (`spec/cli.md` 7.1).
    pub fn json(&self, node: Option<u32>) -> serde_json::Value {
        json!({"error": {"code": self.code, "message": self.message, "node": node}})
    }
}
