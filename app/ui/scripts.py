"""The page's own JavaScript. `element` and `trigger` are what Gradio gives an HTML component's `js_on_load`."""

# A click anywhere in the list reaches Python with the number of the example, taken from the real button under it.
PICK_EXAMPLE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-example]');
  if (button) trigger('click', {example: Number(button.dataset.example)});
});
"""

# The same item lights up in both columns.
LINK_COLUMNS = """
const light = (event, on) => {
  const card = event.target.closest('.fa-hit');
  if (!card) return;
  for (const twin of document.querySelectorAll('.fa-hit')) {
    twin.classList.toggle('fa-twin', on && twin.dataset.item === card.dataset.item);
  }
};
for (const [name, on] of [['mouseover', true], ['focusin', true], ['mouseout', false], ['focusout', false]]) {
  element.addEventListener(name, (event) => light(event, on));
}
"""

# On a phone the form fills the screen: an answer that comes in below it is brought into view.
SHOW_ANSWER = """
const narrow = window.matchMedia('(max-width: 640px)');
const still = window.matchMedia('(prefers-reduced-motion: reduce)');
new MutationObserver(() => {
  const answer = element.querySelector('.fa-summary, .fa-problem');
  if (!answer || !narrow.matches || answer.getBoundingClientRect().top < window.innerHeight / 3) return;
  if (document.activeElement?.matches('textarea')) document.activeElement.blur();  // the keyboard hides half of it
  answer.scrollIntoView({behavior: still.matches ? 'auto' : 'smooth', block: 'start'});
}).observe(element, {childList: true, subtree: true, characterData: true});
"""

# Gradio's number box beside the slider takes anything, and does nothing on Enter. Its menu filters by any key though it
# should not, and a Tab opens it again after the blur that closed it. A preview that fails is a broken picture.
FORM_FIXES = """
const count = '#fa-k input[type=number]';
const correct = (box) => {
  const least = Number(box.min), most = Number(box.max);
  const value = Math.min(most, Math.max(least, Math.round(Number(box.value) || least)));
  if (box.value === String(value)) return;
  box.value = String(value);
  box.dispatchEvent(new Event('input', {bubbles: true}));
};
document.addEventListener('blur', (event) => {
  if (event.target.matches?.(count)) correct(event.target);
}, true);
const menuKeys = ['ArrowUp', 'ArrowDown', 'Home', 'End', 'Enter', 'Escape'];
document.addEventListener('keydown', (event) => {
  if (event.target.matches('#fa-category input') && !menuKeys.includes(event.key)) event.stopPropagation();
}, true);
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !event.target.matches(count)) return;
  event.preventDefault();
  correct(event.target);
  setTimeout(() => document.querySelector('#fa-go').click(), 50);  // once Gradio has taken the number over
}, true);
document.addEventListener('error', (event) => {
  if (event.target.matches?.('#fa-photo img')) event.target.closest('#fa-photo').classList.add('fa-unseen');
}, true);
document.addEventListener('load', (event) => {
  if (event.target.matches?.('#fa-photo img')) event.target.closest('#fa-photo').classList.remove('fa-unseen');
}, true);
"""

# Requests are numbered where they are made: on the server, one may overtake another.
NUMBER_REQUEST = """
(...values) => [...values.slice(0, -1), window.fanoiseRequests = (window.fanoiseRequests || 0) + 1]
"""
