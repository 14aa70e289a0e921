//! Wakes one task, for hot paths: less to touch than the runtime's own, which serve many waiters.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What is rung before its task looks is not lost; rung twice it is heard once. One task at a time
/// may wait.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

impl Bell {
    fn waiter(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the task, now or when it looks.
    pub fn ring(&self) {
        // Whoever rang before has woken it, and it has not looked since.
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Some(waker) = &*self.waiter()
        {
            waker.wake_by_ref();
        }
    }

    /// Ready if it was rung since the last time that this was.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        {
            let mut waiter = self.waiter();
            if !waiter
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *waiter = Some(cx.waker().clone());
            }
        }
        // Who rings from here on finds the waker.
        if self.rung.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Waits until it is rung.
    pub async fn rung(&self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn rung_before_it_is_heard_once() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        bell.rung().await;
        let waker = Waker::noop();
        assert!(bell.poll(&mut Context::from_waker(waker)).is_pending());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_of_another_thread_is_lost() {
        let bells: Arc<[Bell; 2]> = Arc::default();
        let other = Arc::clone(&bells);
        let echo = tokio::spawn(async move {
            for _ in 0..10_000 {
                other[0].rung().await;
                other[1].ring();
            }
        });
        for _ in 0..10_000 {
            bells[0].ring();
            bells[1].rung().await;
        }
        echo.await.unwrap();
    }
}
