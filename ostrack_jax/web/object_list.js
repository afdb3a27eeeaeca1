// The rows come from the server; each button says what it is for.
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-does]');
  if (!button) return;
  const number = Number(button.dataset.number);
  if (button.dataset.does === 'remove') trigger('remove', {number});
  else trigger('show', {number});
});
