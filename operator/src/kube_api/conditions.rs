//! A list of conditions that is computed anew each time, and keeps of the former list only the times at which
//! a status changed.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// The longest message that the API server takes.
const MAX_MESSAGE_BYTES: usize = 32_768;

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known whether it holds.
    Unknown,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What is to be said about one type.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The type of the condition.
    pub type_: &'static str,
    /// Whether it holds.
    pub state: State,
    /// Why.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The generation that it is about.
    pub generation: i64,
}

/// The conditions that say `statements`, in their order.
#[must_use]
pub fn state_all(former: &[Condition], statements: Vec<Statement>, now: Timestamp) -> Vec<Condition> {
    statements
        .into_iter()
        .map(|statement| {
            let unchanged =
                find(former, statement.type_).filter(|former| former.status == statement.state.as_str());
            Condition {
                type_: statement.type_.to_owned(),
                status: statement.state.as_str().to_owned(),
                reason: statement.reason.to_owned(),
                message: shorten(statement.message, MAX_MESSAGE_BYTES),
                observed_generation: Some(statement.generation),
                last_transition_time: unchanged
                    .map_or(Time(now), |former| former.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A text of at most `max_bytes`, cut between two characters.
#[must_use]
pub fn shorten(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        let mut end = max_bytes - "…".len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let say = |state, message: &str| {
            vec![Statement {
                type_: "Ready",
                state,
                reason: "Because",
                message: message.into(),
                generation: 1,
            }]
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = state_all(&[], say(State::False, "a"), at(1));
        let second = state_all(&first, say(State::False, "b"), at(2));
        let third = state_all(&second, say(State::True, "b"), at(3));
        let times =
            [&first, &second, &third].map(|conditions| conditions[0].last_transition_time.0.as_second());
        assert_eq!(times, [1, 1, 3]);
        assert_eq!(second[0].message, "b");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shorten("abc".into(), 3), "abc");
        assert_eq!(shorten("ääää".into(), 6), "ä…");
    }
}
