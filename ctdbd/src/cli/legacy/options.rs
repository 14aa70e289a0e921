//! The option grammar of the old tool (`spec/cli.md` 6.1): options before or after the command,
//! short ones together (`-Yv`), values attached (`-n1`) or not.

/// What the old options say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `-t`: seconds for one request.
    pub time_limit: u64,
    /// `-n`; `None` is the local node, which `-1` names too.
    pub node: Option<u32>,
    /// `-Y` or `-X`.
    pub machine: bool,
    /// `-x`.
    pub separator: String,
    /// `-j`.
    pub json: bool,
    /// `-v`.
    pub verbose: bool,
    /// `-T`: seconds for the whole command; 0 if not given.
    pub max_runtime: u64,
    /// `-?`, `--help`.
    pub help: bool,
    /// `--usage`.
    pub usage: bool,
    /// The command and its arguments.
    pub words: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            time_limit: 10,
            node: None,
            machine: false,
            separator: "|".to_owned(),
            json: false,
            verbose: false,
            max_runtime: 0,
            help: false,
            usage: false,
            words: Vec::new(),
        }
    }
}

/// An option that the old tool does not take: `Invalid option OPT: TEXT`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Invalid option {option}: {text}")]
pub struct BadOption {
    /// As it was given; for a detached value the value.
    pub option: String,
    /// What is wrong with it.
    pub text: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Option_ {
    Debug,
    TimeLimit,
    Node,
    Machine,
    Separator,
    Json,
    Verbose,
    MaxRuntime,
    Help,
    Usage,
}

impl Option_ {
    fn short(letter: char) -> Option<Self> {
        Some(match letter {
            'd' => Self::Debug,
            't' => Self::TimeLimit,
            'n' => Self::Node,
            'Y' | 'X' => Self::Machine,
            'x' => Self::Separator,
            'j' => Self::Json,
            'v' => Self::Verbose,
            'T' => Self::MaxRuntime,
            '?' => Self::Help,
            _ => return None,
        })
    }

    fn long(name: &str) -> Option<Self> {
        Some(match name {
            "debug" => Self::Debug,
            "timelimit" | "timeout" => Self::TimeLimit,
            "node" => Self::Node,
            "separator" => Self::Separator,
            "json" => Self::Json,
            "verbose" => Self::Verbose,
            "maxruntime" => Self::MaxRuntime,
            "help" => Self::Help,
            "usage" => Self::Usage,
            _ => return None,
        })
    }

    fn takes_value(self) -> bool {
        matches!(
            self,
            Self::Debug | Self::TimeLimit | Self::Node | Self::Separator | Self::MaxRuntime
        )
    }
}

/// Reads all arguments by the old grammar.
pub fn parse(args: &[String]) -> Result<Options, BadOption> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            options.words.extend(rest.by_ref().cloned());
        } else if let Some(long) = arg.strip_prefix("--") {
            let (name, attached) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let option = Option_::long(name)
                .filter(|option| option.takes_value() || attached.is_none())
                .ok_or_else(|| bad(arg, "unknown option"))?;
            apply(&mut options, option, arg, attached, &mut rest)?;
        } else if let Some(letters) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                let option = Option_::short(letter).ok_or_else(|| bad(arg, "unknown option"))?;
                let attached = option.takes_value().then_some(letters.as_str());
                let attached = attached.filter(|text| !text.is_empty());
                apply(&mut options, option, arg, attached, &mut rest)?;
                if option.takes_value() {
                    break;
                }
            }
        } else {
            options.words.push(arg.clone());
        }
    }
    Ok(options)
}

/// The words of a command line, as far as they can be told before an error: what comes first
/// decides between the old and the new form.
pub fn words(args: &[String]) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            words.extend(rest.by_ref().map(String::as_str));
        } else if let Some(long) = arg.strip_prefix("--") {
            let value = !long.contains('=');
            if value && Option_::long(long).is_some_and(Option_::takes_value) {
                rest.next();
            }
        } else if let Some(letters) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            let taker = letters
                .char_indices()
                .find(|(_, letter)| Option_::short(*letter).is_some_and(Option_::takes_value));
            if taker.is_some_and(|(at, letter)| at + letter.len_utf8() == letters.len()) {
                rest.next();
            }
        } else {
            words.push(arg);
        }
    }
    words
}

fn bad(option: &str, text: &'static str) -> BadOption {
    BadOption {
        option: option.to_owned(),
        text,
    }
}

fn apply<'a>(
    options: &mut Options,
    option: Option_,
    arg: &str,
    attached: Option<&str>,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<(), BadOption> {
    let (value, shown) = match (option.takes_value(), attached) {
        (false, _) => (String::new(), String::new()),
        (true, Some(value)) => (value.to_owned(), arg.to_owned()),
        (true, None) => {
            let value = rest.next().ok_or_else(|| bad(arg, "missing argument"))?;
            (value.clone(), value.clone())
        }
    };
    let number = || number(&value).map_err(|why| bad(&shown, why));
    let seconds = || number().map(|seconds| u64::try_from(seconds).unwrap_or(0));
    match option {
        Option_::Debug => {}
        Option_::TimeLimit => options.time_limit = seconds()?,
        // -1 is the old tool's own word for the local node.
        Option_::Node => options.node = u32::try_from(number()?).ok(),
        Option_::Machine => options.machine = true,
        Option_::Separator => options.separator = value,
        Option_::Json => options.json = true,
        Option_::Verbose => options.verbose = true,
        Option_::MaxRuntime => options.max_runtime = seconds()?,
        Option_::Help => options.help = true,
        Option_::Usage => options.usage = true,
    }
    Ok(())
}

/// A number in C notation, in the range of an `int`; else what is wrong with it.
fn number(text: &str) -> Result<i32, &'static str> {
    const INVALID: &str = "invalid numeric value";
    const RANGE: &str = "number too large or too small";
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.starts_with(['+', '-']) {
        return Err(INVALID);
    }
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        i64::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    let value = value.map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow => RANGE,
        _ => INVALID,
    })?;
    i32::try_from(if negative { -value } else { value }).map_err(|_| RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parsed(line: &str) -> Options {
        parse(&split(line)).unwrap()
    }

    #[test]
    fn options_stand_anywhere_and_together() {
        let options = parsed("-n1 status -Yvx : -T 0x10 --timelimit=5");
        assert_eq!(options.node, Some(1));
        assert!(options.machine && options.verbose && !options.json);
        assert_eq!(options.separator, ":");
        assert_eq!((options.time_limit, options.max_runtime), (5, 16));
        assert_eq!(options.words, ["status"]);
        assert_eq!(parsed("ban -- -1").words, ["ban", "-1"]);
        assert_eq!(parsed("-d foo version").words, ["version"]);
        assert_eq!(parsed("-n -1 status").node, None);
        assert_eq!(parsed("--node 3 ping").node, Some(3));
    }

    #[test]
    fn wrong_options_are_named_as_the_old_tool_does() {
        // Asked of the package 4.17.
        for (line, text) in [
            ("--bogus status", "Invalid option --bogus: unknown option"),
            ("-Z status", "Invalid option -Z: unknown option"),
            ("ban -1", "Invalid option -1: unknown option"),
            ("--nod=1 version", "Invalid option --nod=1: unknown option"),
            ("-t", "Invalid option -t: missing argument"),
            ("-t abc pnn", "Invalid option abc: invalid numeric value"),
            ("-n all status", "Invalid option all: invalid numeric value"),
            (
                "-n 4294967295 status",
                "Invalid option 4294967295: number too large or too small",
            ),
            (
                "-t 99999999999999999999 status",
                "Invalid option 99999999999999999999: number too large or too small",
            ),
            ("-n5x status", "Invalid option -n5x: invalid numeric value"),
            (
                "status --timelimit=abc",
                "Invalid option --timelimit=abc: invalid numeric value",
            ),
        ] {
            assert_eq!(parse(&split(line)).unwrap_err().to_string(), text, "{line}");
        }
    }

    #[test]
    fn the_first_word_is_found_behind_any_option() {
        for (line, wanted) in [
            ("-n 1 ip list", vec!["ip", "list"]),
            ("-n1 -Yx : ip", vec!["ip"]),
            ("--json node list --bogus", vec!["node", "list"]),
            ("--node=1 --timelimit 5 ip", vec!["ip"]),
            ("-j", vec![]),
        ] {
            assert_eq!(words(&split(line)), wanted, "{line}");
        }
    }
}
