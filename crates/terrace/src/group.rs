//! A **group**: calls that are asked together, in one exchange, because they came together.
//!
//! A call that finds nobody before it goes at once: nothing is held back in the hope of company.
//! Where exchanges are made one after the other, those who come while one is under way are the next;
//! databases know that as group commit. Where they need not wait for each other, those go together
//! who came before the task that asks for them was run. Which it is, an exchange decides: the next one
//! begins when it lets go of its [turn](Turn).

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::runtime::{BoxFuture, unless};

/// What makes exchanges for many callers at once.
pub(crate) trait Together<C: Send + 'static>: Sized + Send + Sync + 'static {
    type Answer: Send + 'static;

    fn group(&self) -> &Group<C, Self::Answer>;

    /// How much of an exchange a call takes.
    fn size(_call: &C) -> usize {
        1
    }

    /// Answers all of these, in their order. The next exchange begins when `turn` is dropped.
    fn exchange(
        self: Arc<Self>,
        calls: Vec<C>,
        turn: Turn<Self, C>,
    ) -> BoxFuture<'static, Vec<Self::Answer>>;

    /// Runs what callers are waiting for, whatever becomes of them.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// The calls that wait.
#[derive(Debug)]
pub(crate) struct Group<C, A> {
    /// What one exchange takes.
    most: usize,
    line: Mutex<Line<C, A>>,
}

#[derive(Debug)]
struct Line<C, A> {
    /// Whether somebody is about to take those who wait.
    is_taken_care_of: bool,
    waiting: VecDeque<(C, oneshot::Sender<A>)>,
}

impl<C, A> Group<C, A> {
    pub(crate) fn new(most: usize) -> Self {
        let line = Line { is_taken_care_of: false, waiting: VecDeque::new() };
        Self { most, line: Mutex::new(line) }
    }

    /// What the next exchange is to answer, and whom.
    fn next(&self, size: impl Fn(&C) -> usize) -> (Vec<C>, Vec<oneshot::Sender<A>>) {
        let (mut calls, mut answers, mut taken) = (Vec::new(), Vec::new(), 0);
        let mut line = self.line.lock();
        while let Some((call, answer)) = line.waiting.pop_front() {
            // Nobody waits for it any more.
            if answer.is_closed() {
                continue;
            }
            taken += size(&call);
            if taken > self.most && !calls.is_empty() {
                line.waiting.push_front((call, answer));
                break;
            }
            calls.push(call);
            answers.push(answer);
        }
        (calls, answers)
    }

    /// Every call that waits: for whoever knows that waiting is in vain.
    pub(crate) fn take_all(&self) -> impl Iterator<Item = (C, oneshot::Sender<A>)> {
        std::mem::take(&mut self.line.lock().waiting).into_iter()
    }
}

/// The answer to `call`; `None` if the exchange came to nothing, by a panic say.
///
/// Exchanges are made by tasks of their own: a caller that is dropped, or never polled again, keeps
/// nobody else waiting.
pub(crate) async fn ask<T: Together<C>, C: Send + 'static>(
    asked: &Arc<T>,
    call: C,
) -> Option<T::Answer> {
    let (sender, receiver) = oneshot::channel();
    let is_first = {
        let mut line = asked.group().line.lock();
        line.waiting.push_back((call, sender));
        !std::mem::replace(&mut line.is_taken_care_of, true)
    };
    if is_first {
        Turn::spawn(asked);
    }
    receiver.await.ok()
}

/// Whose turn it is to take those who wait. It is passed on when it is dropped, by a panic say.
pub(crate) struct Turn<T: Together<C>, C: Send + 'static> {
    asked: Arc<T>,
    has_begun: bool,
    calls: PhantomData<fn(C)>,
}

impl<T: Together<C>, C: Send + 'static> Turn<T, C> {
    fn spawn(asked: &Arc<T>) {
        let mut turn = Self { asked: Arc::clone(asked), has_begun: false, calls: PhantomData };
        asked.spawn(Box::pin(async move {
            turn.has_begun = true;
            let asked = Arc::clone(&turn.asked);
            let (calls, mut answers) = asked.group().next(T::size);
            if calls.is_empty() {
                return;
            }
            // What nobody waits for any more is given up, as a call by itself would be.
            let gone = async {
                for answer in &mut answers {
                    answer.closed().await;
                }
            };
            let answered = unless(move || gone, asked.exchange(calls, turn)).await;
            for (answer, sender) in answered.into_iter().flatten().zip(answers) {
                // Whoever gave up needs no answer.
                let _ = sender.send(answer);
            }
        }));
    }
}

impl<T: Together<C>, C: Send + 'static> Drop for Turn<T, C> {
    fn drop(&mut self) {
        let group = self.asked.group();
        if !self.has_begun {
            // The runtime is gone, and would not run another task either.
            group.take_all().for_each(drop);
        }
        {
            let mut line = group.line.lock();
            if line.waiting.is_empty() {
                line.is_taken_care_of = false;
                return;
            }
        }
        Self::spawn(&self.asked);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::sync::Semaphore;

    use super::*;

    /// Answers each call with itself, once it is let, and notes who went together.
    struct Echo {
        group: Group<u32, u32>,
        lets: Semaphore,
        exchanges: Mutex<Vec<Vec<u32>>>,
    }

    /// At this one it panics.
    const PANIC: u32 = 13;

    impl Together<u32> for Echo {
        type Answer = u32;

        fn group(&self) -> &Group<u32, u32> {
            &self.group
        }

        fn size(call: &u32) -> usize {
            (call / 100) as usize
        }

        fn exchange(
            self: Arc<Self>,
            calls: Vec<u32>,
            turn: Turn<Self, u32>,
        ) -> BoxFuture<'static, Vec<u32>> {
            Box::pin(async move {
                let _turn = turn;
                self.exchanges.lock().push(calls.clone());
                self.lets.acquire().await.unwrap().forget();
                assert!(!calls.contains(&PANIC), "a panic that is meant");
                calls
            })
        }

        fn spawn(&self, task: BoxFuture<'static, ()>) {
            tokio::spawn(task);
        }
    }

    /// Polls a caller once; says whether it has to wait.
    async fn waits<T>(caller: &mut BoxFuture<'static, T>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(caller.as_mut().poll(context).is_pending()))
            .await
    }

    async fn all<T>(callers: impl IntoIterator<Item = BoxFuture<'static, T>>) -> Vec<T> {
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await);
        }
        answers
    }

    impl Echo {
        fn new() -> Arc<Self> {
            let (group, lets) = (Group::new(4), Semaphore::new(0));
            Arc::new(Self { group, lets, exchanges: Mutex::default() })
        }

        /// Those who call, in this order, each waiting already.
        async fn call(self: &Arc<Self>, calls: &[u32]) -> Vec<BoxFuture<'static, Option<u32>>> {
            let mut waiting: Vec<BoxFuture<'static, _>> = Vec::new();
            for call in calls {
                let (echo, call) = (Arc::clone(self), *call);
                waiting.push(Box::pin(async move { ask(&echo, call).await }));
                let first = waiting.last_mut().expect("it was pushed");
                assert!(waits(first).await);
            }
            // Until whatever can be asked now has been.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            waiting
        }

        fn exchanges(&self) -> Vec<Vec<u32>> {
            self.exchanges.lock().clone()
        }
    }

    #[tokio::test]
    async fn those_who_come_meanwhile_go_together_as_far_as_they_fit() {
        let echo = Echo::new();
        let waiting = echo.call(&[100]).await;
        let more = echo.call(&[200, 101, 102, 103, 900, 104]).await;
        echo.lets.add_permits(10);
        let answers = all(waiting.into_iter().chain(more)).await;
        assert_eq!(answers, [100, 200, 101, 102, 103, 900, 104].map(Some));
        // What is too large for any exchange has one to itself.
        assert_eq!(
            echo.exchanges(),
            [vec![100], vec![200, 101, 102], vec![103], vec![900], vec![104]]
        );
    }

    #[tokio::test]
    async fn who_is_never_polled_again_keeps_nobody_waiting() {
        let echo = Echo::new();
        let first = echo.call(&[1]).await;
        let others = echo.call(&[2, 3]).await;
        echo.lets.add_permits(10);
        assert_eq!(ask(&echo, 4).await, Some(4));
        assert_eq!(echo.exchanges(), [vec![1], vec![2, 3, 4]]);
        drop((first, others));
        assert_eq!(ask(&echo, 5).await, Some(5));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_given_up() {
        let echo = Echo::new();
        let first = echo.call(&[1]).await;
        drop(echo.call(&[2, 3]).await);
        drop(first);
        // Nobody is let: the one under way ends because whoever asked has gone.
        let others = echo.call(&[4]).await;
        assert_eq!(echo.exchanges(), [vec![1], vec![4]]);
        echo.lets.add_permits(1);
        assert_eq!(all(others).await, [Some(4)]);
    }

    #[tokio::test]
    async fn a_panic_fails_those_who_went_with_it_and_nobody_else() {
        let echo = Echo::new();
        let first = echo.call(&[1]).await;
        let others = echo.call(&[2, PANIC, 900]).await;
        echo.lets.add_permits(10);
        let answers = all(first.into_iter().chain(others)).await;
        assert_eq!(answers, [Some(1), None, None, Some(900)]);
        assert_eq!(ask(&echo, 4).await, Some(4));
    }

    /// The same for exchanges that need not wait for each other.
    struct Apart(Echo);

    impl Together<u32> for Apart {
        type Answer = u32;

        fn group(&self) -> &Group<u32, u32> {
            &self.0.group
        }

        fn exchange(
            self: Arc<Self>,
            calls: Vec<u32>,
            turn: Turn<Self, u32>,
        ) -> BoxFuture<'static, Vec<u32>> {
            drop(turn);
            Box::pin(async move {
                self.0.exchanges.lock().push(calls.clone());
                self.0.lets.acquire().await.unwrap().forget();
                calls
            })
        }

        fn spawn(&self, task: BoxFuture<'static, ()>) {
            tokio::spawn(task);
        }
    }

    #[tokio::test]
    async fn where_none_waits_for_another_those_go_together_who_came_before_the_task_was_run() {
        let (group, lets) = (Group::new(4), Semaphore::new(0));
        let apart = Arc::new(Apart(Echo { group, lets, exchanges: Mutex::default() }));
        let mut waiting: Vec<BoxFuture<'static, _>> = Vec::new();
        for round in 0..2 {
            for call in 0..6 {
                let apart = Arc::clone(&apart);
                waiting.push(Box::pin(async move { ask(&apart, 10 * round + call).await }));
                let last = waiting.last_mut().expect("it was pushed");
                assert!(waits(last).await);
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        let together = [vec![0, 1, 2, 3], vec![4, 5], vec![10, 11, 12, 13], vec![14, 15]];
        assert_eq!(apart.0.exchanges(), together, "nobody was let yet");
        apart.0.lets.add_permits(4);
        let answers = all(waiting).await;
        assert!(answers.into_iter().flatten().eq(together.concat()));
    }

    #[test]
    fn a_runtime_that_is_gone_leaves_nobody_waiting() {
        let echo = Echo::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let waiting = runtime.block_on(async {
            let mut waiting: Vec<BoxFuture<'static, _>> = Vec::new();
            for call in 0..3 {
                let echo = Arc::clone(&echo);
                waiting.push(Box::pin(async move { ask(&echo, call).await }));
                let last = waiting.last_mut().expect("it was pushed");
                assert!(waits(last).await);
            }
            waiting
        });
        // Before the task has been run even once.
        drop(runtime);
        let another = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answers = another.block_on(all(waiting));
        assert_eq!(answers, [None, None, None]);
    }
}
