/** The time of day as state, once a second, so that ages and countdowns move. */

let now_ms = $state(Date.now());
setInterval(() => {
  now_ms = Date.now();
}, 1000);

export const clock = {
  get now_ms(): number {
    return now_ms;
  },
};
